"""What is said of a network: its layers under the theorems, and the network compressed in several
ways.
"""
