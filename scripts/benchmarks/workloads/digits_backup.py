"""The digits example with Keras' own BackupAndRestore in it, for a shell loop that calls it until it is through."""

import argparse
from pathlib import Path

import keras
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

keras.utils.set_random_seed(1234)

digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]
x_train, x_val, y_train, y_val = train_test_split(
    images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.BatchNormalization(),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Dropout(0.25),
        layers.Conv2D(128, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.summary()

model.fit(
    x_train,
    y_train,
    batch_size=args.batch_size,
    epochs=args.epochs,
    validation_data=(x_val, y_val),
    callbacks=[
        keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=8, min_lr=1e-5, verbose=1),
        keras.callbacks.EarlyStopping(patience=40, restore_best_weights=True, verbose=1),
        keras.callbacks.ModelCheckpoint(args.out / "best.keras", save_best_only=True),
        keras.callbacks.BackupAndRestore(args.out / "backup"),
    ],
)

loss, accuracy = model.evaluate(x_val, y_val, verbose=0)
model.save_weights(args.out / "final.weights.h5")
print(f"final accuracy: {accuracy:.4f}  (loss {loss:.4f})")
