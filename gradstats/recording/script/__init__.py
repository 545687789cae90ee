"""`gradstats capture`: the recording of a script that knows nothing of it."""
