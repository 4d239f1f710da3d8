"""How fast is the mount?  The workload of workload.py on file systems in turns; ``python -m bench --help``.

Everything runs on this machine, on loopback, with data on one disk, in a fresh directory that is removed at the end.
Round 1 goes over all targets, then round 2, so that what else the machine does falls on all of them.  Every target has
a server of its own, and each round begins with an empty one.

As root caches can be dropped; other users get the table without the rows that need it.

processes: what is started, weighed and ended.  relay: a long way to a server.  targets, objects: what is measured.
rounds: measuring.  report: tables.
"""
