"""ksupervise: run an unmodified Keras script so that it survives being killed.

Importing this package imports nothing heavy; the parent never imports TensorFlow, Keras or numpy.
"""

__version__ = "0.1.0.dev0"
