"""Search: how many bits each layer needs, and the weights that go with them."""
