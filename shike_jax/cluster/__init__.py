"""Devices and processes: the only home of pmap, of the coordination service and of being asked to stop."""
