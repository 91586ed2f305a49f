"""What is said of a network: its layers under the theorems, and the network compressed in several
ways.
"""

FAILURE_PROBABILITY = 0.05  # of all that a study states with a probability
