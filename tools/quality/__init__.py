"""What a plan costs in quality: pictures of the engine beside the sequential output and fewer steps."""
