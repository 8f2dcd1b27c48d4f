"""What a configuration is exported to: one file a kind of target. Pure: a Shipment in, a Bundle out."""
