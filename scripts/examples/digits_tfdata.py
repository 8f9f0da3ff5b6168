"""Handwritten digits through a tf.data pipeline with augmentation, and a model with its own train_step."""

import argparse
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

keras.utils.set_random_seed(1234)

digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]
labels = digits.target.astype("int32")
split = 1437


def augment(example, seed):
    """Shift by up to one pixel, and change the contrast."""
    image, label = example
    seeds = tf.random.split(tf.stack([seed, 0]), 2)
    image = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    image = tf.image.stateless_random_crop(image, (8, 8, 1), seed=seeds[0])
    image = tf.image.stateless_random_contrast(image, 0.8, 1.2, seed=seeds[1])
    return image, label


train = tf.data.Dataset.from_tensor_slices((images[:split], labels[:split]))
train = train.shuffle(split, seed=7)
train = tf.data.Dataset.zip((train, tf.data.Dataset.random(seed=7, rerandomize_each_iteration=True)))
train = train.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
train = train.batch(args.batch_size).prefetch(tf.data.AUTOTUNE)

val = tf.data.Dataset.from_tensor_slices((images[split:], labels[split:])).batch(256)


class DigitsModel(keras.Model):
    """A CNN that clips its gradients by their global norm."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential(
            [
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.Conv2D(64, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(128, 3, padding="same", activation="relu"),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dropout(0.4),
                layers.Dense(10),
            ]
        )

    def call(self, x, training=False):
        return self.net(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


model = DigitsModel()
model.compile(
    optimizer=keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, args.epochs * len(train))),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

model.fit(
    train,
    epochs=args.epochs,
    validation_data=val,
    callbacks=[keras.callbacks.CSVLogger(args.out / "log.csv")],
)

loss, accuracy = model.evaluate(val, verbose=0)
model.save_weights(args.out / "final.weights.h5")
print(f"final accuracy: {accuracy:.4f}  (loss {loss:.4f})")
