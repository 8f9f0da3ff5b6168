"""Digits with a perceptron whose training state (weights and Adam's moments) has a given size."""

import argparse

import keras
from keras import layers
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--megabytes", type=float, default=30.0)
parser.add_argument("--epochs", type=int, default=60)
args = parser.parse_args()

keras.utils.set_random_seed(1234)
digits = load_digits()
images, labels = (digits.images / 16.0).astype("float32").reshape(-1, 64), digits.target

# Three copies of each weight, 4 bytes each: width² + 76 width + 10 weights.
weights = args.megabytes * 1e6 / 12
width = max(1, round((76**2 / 4 + weights) ** 0.5 - 76 / 2))
model = keras.Sequential(
    [
        keras.Input((64,)),
        layers.Dense(width, activation="relu"),
        layers.Dense(width, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images, labels, batch_size=64, epochs=args.epochs)
