"""Two stacks, random links and random applications in virtual time; the oracle is the stream."""
