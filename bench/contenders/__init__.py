"""What is measured. Modules hold one side each: a contender's process imports nothing of the other.

Peers' modules import the peer's library, and of this project only what is the same for both sides.
"""
