"""The mount's local copy of bytes: clean blocks of blobs, and dirty ranges not yet in the space."""
