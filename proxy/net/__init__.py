"""What the host's kernel is told: routes, rules, nft, sysctls; all of it taken back again."""
