"""The network, its export, its card, and the repository of versions. Trains nothing and serves nothing."""
