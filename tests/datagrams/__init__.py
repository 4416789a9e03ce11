"""Programs that send datagrams, with chunnels beneath them."""
