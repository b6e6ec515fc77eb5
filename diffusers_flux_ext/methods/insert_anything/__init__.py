"""Insert-Anything: objects of one image in another."""
