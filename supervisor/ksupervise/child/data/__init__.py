"""The position in the data: where the training stands in it, and how a later attempt gets back there."""
