"""The console command, its parser and the flags of the configuration."""
