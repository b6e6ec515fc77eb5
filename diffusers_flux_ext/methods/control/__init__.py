"""ControlNets."""
