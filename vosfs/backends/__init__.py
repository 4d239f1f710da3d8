"""Port 2, bytes: immutable blobs, and the adapters that keep them."""
