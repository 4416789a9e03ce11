"""Programs whose connections go through chunnels, end to end."""
