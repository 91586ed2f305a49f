"""What any JAX function of parameters and a batch multiplies, followed, observed and replaced; the
public verbs are in `networks`.
"""
