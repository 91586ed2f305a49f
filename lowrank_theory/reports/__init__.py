"""Pages and tables of what verifications and studies found. Nothing else in the package imports
them, but for the command line.
"""
