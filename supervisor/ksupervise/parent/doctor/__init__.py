"""`ksupervise doctor`: what is tried out on this machine, each thing bounded in time."""
