"""Files in and out: images, weights, the hub, run folders."""
