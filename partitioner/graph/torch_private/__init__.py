"""All uses of torch's private names, so that a new release of torch changes files of this package alone."""
