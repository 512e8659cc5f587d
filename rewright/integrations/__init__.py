"""Where rewright meets other libraries. None of them is imported before a function of these modules is called."""
