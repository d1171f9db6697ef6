"""What events, websites, users and clicks are: rules that need no server and know no setting."""
