"""Print one sha256 over all weights in a .weights.h5 file.

Two HDF5 files with the same weights differ in their bytes (timestamps, allocation); two digests do not.
"""

import argparse
import hashlib

import h5py


def digest(path: str) -> str:
    sha = hashlib.sha256()
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visit(names.append)
        for name in sorted(names):
            if isinstance(file[name], h5py.Dataset):
                array = file[name][()]
                sha.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
                sha.update(array.tobytes())
    return sha.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", metavar="FILE.weights.h5", nargs="+")
    for path in parser.parse_args().files:
        print(f"{digest(path)}  {path}")


if __name__ == "__main__":
    main()
