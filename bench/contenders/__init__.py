"""The contenders. Each module has one side only, so that its process does not import the other.

Peers' modules import the peer's library, and from this project only what both sides share.
"""
