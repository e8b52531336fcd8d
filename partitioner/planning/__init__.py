"""From a request to a plan: candidates, their order, and what is expected of them."""
