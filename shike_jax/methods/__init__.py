"""What papers write: losses, samplers, schedules and the like, as pure functions in registries."""
