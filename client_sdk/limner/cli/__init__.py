"""The `limner` command: one module for each group of commands, over `limner.Client`."""

import os

# Read by gRPC when it is first imported: its own remarks about connections are not for the user of a command.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
