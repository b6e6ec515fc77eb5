"""AttriCtrl: attributes such as brightness, controlled by numbers."""
