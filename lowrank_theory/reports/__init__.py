"""Pages and tables of what verifications and studies found. Nothing but the command line imports
them.
"""
