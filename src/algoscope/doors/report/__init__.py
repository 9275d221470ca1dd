"""Reports as offline HTML pages."""
