"""What several tests share: built models, hand-made files, small networks."""
