"""What a network, a topology or a run looks like: measurements, and the laws fitted to them."""
