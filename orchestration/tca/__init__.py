"""`l2 tca`: transaction cost analysis of parents on record; its verb and its HTML report."""
