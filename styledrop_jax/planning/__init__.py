"""What a run takes on a device, said before it starts, from shapes alone."""
