"""vosfs: a VOSpace that you mount.

The package is the core shared by the mount (``vosfs``) and the daemon (``server``): what a node is,
where names and bytes are kept, and how both travel.
"""

__version__ = "0.1.0"
