"""What the parent knows of the child and its machine without being told; and the evidence of a death."""
