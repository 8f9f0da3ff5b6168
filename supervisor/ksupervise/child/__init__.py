"""Our part inside the user's interpreter. Standard library only, and what the user's Keras brings.

Whatever goes wrong in here is told to the parent and never ends or changes the training.
"""
