"""Where alarms go: one file a kind of receiver."""
