"""Scoring at scale: source → plan → readers → flow → journal → tables, and on from wherever that stopped.

1. `sources` gives the images of folders, patterns, manifests (`manifest`), volumes or of the caller; what paths name is
   written down first, in `items.csv` (`plan`), and has to be the same when the run goes on.
2. `readers` decode ahead of the sending; `flow` sends within the credit of each server of the `fleet`, and again what
   a lost one owes.
3. `calls` says which call that is; `vectors` keeps what comes of it beside the row.
4. `journal` keeps each answer as a line as it comes. It is all that a kill leaves, and all that is needed to go on.
5. `tables` writes images, subjects and failures from it, in the order of the source, once every image has its line.
6. `merge` makes of the shards of a source what one run would have made.

Nothing in it knows torch or the server's code; what it needs of servers is `fleet.Fleet`.
"""
