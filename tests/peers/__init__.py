"""Programs that measure localr1 against other runners in the same run; pytest does not run them."""
