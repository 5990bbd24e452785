"""Who answers: a model in this machine's memory, or one behind somebody's API."""
