"""InfiniteYou: identities."""
