"""What muse_vs_reference.py runs in processes of their own: each side imports its own framework and not the other's."""
