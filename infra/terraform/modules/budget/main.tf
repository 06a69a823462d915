# Mails before it costs too much. Of the whole account, since a tag that somebody forgot would hide its cost.
resource "aws_budgets_budget" "monthly" {
  name         = "${var.name}-monthly"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(local.limit_usd)
  limit_unit   = "USD"

  # Credits and refunds are left out: the alarm tells what the account uses up, also while credits still pay for it.
  cost_types {
    include_credit = false
    include_refund = false
  }

  dynamic "notification" {
    for_each = var.thresholds_usd

    content {
      comparison_operator        = "GREATER_THAN"
      notification_type          = "ACTUAL"
      threshold                  = notification.value
      threshold_type             = "ABSOLUTE_VALUE"
      subscriber_email_addresses = var.emails
    }
  }

  notification {
    comparison_operator        = "GREATER_THAN"
    notification_type          = "FORECASTED"
    threshold                  = local.limit_usd
    threshold_type             = "ABSOLUTE_VALUE"
    subscriber_email_addresses = var.emails
  }
}

locals {
  limit_usd = var.thresholds_usd[length(var.thresholds_usd) - 1]
}
