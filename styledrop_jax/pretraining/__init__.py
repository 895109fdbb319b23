"""What `styledrop pretrain` trains: a task a file, on the axes of `base`."""
