"""`python -m ksupervise` is `ksupervise`."""

from ksupervise.cli import main

if __name__ == "__main__":
    main()
